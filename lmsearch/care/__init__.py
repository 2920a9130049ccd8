"""The doctor: looks at store, leases, disk, corpora, devices and versions, and repairs what it is asked to."""
