"""What a run would cost on a cluster, and what this machine can do. Imported by entry points alone."""
