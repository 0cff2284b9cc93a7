"""The stub's side: payloads to commands, replies to payloads, and the session between them."""
