"""What only a GPU can get wrong: every test runs on the device of `--device`, on a CPU as well, so that it is known to be right.

They need torch, torchvision, numpy and pytest alone, and `test_protocol` what `docs/reproduce.md` lists.
"""
