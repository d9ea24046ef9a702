"""What logs, exports and snapshots tell when they are looked at afterwards."""
