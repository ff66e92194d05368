"""The guest side: `cmappserver`, and what both sides share: outcomes, identities, the wire protocol, the log."""
