"""The server: durable jobs in a database, workers that make them, an HTTP API and a page over both.

`config` what is set, `queue` the jobs (with `tables`, `database`, `registry`), `store` the files, `worker` batches on a
device, `api` the wire, `app` what ties it together, `supervisor` the processes of one machine.
"""
