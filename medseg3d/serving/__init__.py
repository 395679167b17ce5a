"""A loaded model behind HTTP: uploads go in, label maps come out.

One upload's way: ``gate`` who may ask · ``upload`` the request's body into files · ``attached`` no file that names another · ``cases``
files, or those of a zip, into the one case · ``jobs`` queue, worker, what is kept · ``predict_upload`` the prediction ·
``answers`` what is told of it · ``routes`` the endpoints · ``page`` the overview for people. ``app`` puts them together.
"""
