"""Programs that measure a server process by themselves: latency during maps, two keys, a large cache."""
