"""Captum attributions that decompose the predictions of transformer language models.

Replace ``InputXGradient`` by :class:`LRPx` or :class:`AttnLRPx`; start with :func:`explain` if
there is no Captum code yet.

Importing the package loads next to nothing: the public names are in ``__init__.pyi``, and each is
imported from its module at first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
