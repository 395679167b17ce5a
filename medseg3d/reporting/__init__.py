"""What a person looks at: ``figures`` draws PNG pictures; ``report`` reads a work folder, ``page`` makes its HTML.

``charts`` lays out the curves that the page draws.
"""
