"""Hosts probed by hping3: the program, what it prints, and what is made of that."""
