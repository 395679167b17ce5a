"""How good label maps are: per case, per label, over all cases, with a written policy for what is empty.

``evaluate_case`` two arrays → metrics · ``evaluate_folders`` two folders → evaluation · ``surfaces`` and ``lesions`` the
measures · ``metrics`` the records, JSON, CSV and table · ``compare`` means with their confidence.
"""
