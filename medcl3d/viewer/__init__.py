"""One offline HTML page with scans in three planes, and what runs make of them."""
