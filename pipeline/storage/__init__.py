"""Stage folders and shards at a URL: in a bucket, or on a share that machines have in common."""
