"""The HTTP interface: `videos` jobs, `content` files, `events` progress, `system` health, models, `page` the page."""
