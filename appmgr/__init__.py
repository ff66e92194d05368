"""The host side: `cmappmgr`, one for each watched application."""
