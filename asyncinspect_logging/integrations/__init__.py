"""Web frameworks, task queues, trio and anyio, and Python's live tools. Each module is imported by itself, and only
then needs what it is for.
"""
