"""The HTTP interface: `videos` jobs, `content` files, `events` progress, `system` health, models, metrics, `page`."""
