"""From a folder of scans and masks to TFRecords: the cohort, its plan, the centres and the records."""
