"""Files and folders: atomic files, a lock for folders, hashes.

Not here: what is in the files.
"""
