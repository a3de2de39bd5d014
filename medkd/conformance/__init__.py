"""The rules that every distillation loss should keep on volumes, and what judges a loss by them.

For our own methods in the tests, and for anybody's: ``medkd conformance module:function``.
"""
