"""What keeps lines, buckets and results beyond the life of a process."""
