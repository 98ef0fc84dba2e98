"""Files of a forecast: summary, BIDS derivative, DICOM SEG and figure."""
