"""Many hearts: a manifest becomes a folder of results and one table, on one machine or on a cluster."""
