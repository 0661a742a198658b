"""Prefect flows: the same stage functions, scheduled, retried and shown in a page."""
