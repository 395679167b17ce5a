"""What is written as DICOM: a label map on the grid of a series goes in, a SEG, an RT structure set or a structured report comes out.

Each refers to the slices of its series (``source``), names structures by codes (``codes``) and says which model made it (``made_by``);
``outputs`` lists the kinds. Needs highdicom and pydicom, the extra ``dicom``.
"""
