"""Findings to DICOM SR: pure, with UIDs, times and evidence headers as arguments."""
