"""Retrains: alarm or schedule to candidate."""
