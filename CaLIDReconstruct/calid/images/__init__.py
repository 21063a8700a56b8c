"""DICOM and volume files <-> `Stack`."""
