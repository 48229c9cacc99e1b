"""Pictures on their way to a network: shards, order, decoding, resizing."""
