import gc

gc.disable()  # until everything is imported and all tests are collected (conftest.py): it takes seconds
