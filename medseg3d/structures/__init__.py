"""Numbers of the structures in a label map: a map (and its image) in, volume, place, intensities and distances out.

``records`` what is measured, JSON and CSV · ``measure_case`` one label map → its numbers · ``shapes`` extent, diameter, objects of one
structure · ``distances`` from one structure to another · ``radiomics`` the features of pyradiomics · ``measure_folders`` a folder.
"""
