"""``adr process``: lease, run, upload, settle; one module per part of a worker."""
