"""From the downloads of ScanNet, S3DIS and Structured3D to the files that PonderV2's datasets read.

Results equal those of PonderV2's preprocessing scripts; what is missing or damaged in the raw data is left out and
counted, and the rest is converted.
"""
