"""The tools. Imports make many long-lived objects: collecting among them would cost a tenth of the start-up."""

import gc

gc.set_threshold(100_000, 20, 20)
