"""What is compared: each subject is a server, and a client for each application."""
