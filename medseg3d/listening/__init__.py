"""A hospital's night: DICOM studies come in, are predicted by rules, and the results go on.

``rules`` what a TOML file says · ``receive`` (storage SCP), ``watch`` (a folder), ``dicomweb`` how studies come · ``spool`` where they lie
and what was done of them · ``choose`` which series a rule takes · ``night`` one thing after the other · ``send`` where results go.
"""
