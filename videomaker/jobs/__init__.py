"""What is asked, a model made ready, frames and files, and the record: behind every command and every server."""
