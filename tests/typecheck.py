"""How the tests check annotations at run time: whole numbers pass where floats do."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
