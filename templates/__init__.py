"""What every page of the admin has in common: base class, cells, forms, words for numbers. Imports no app."""
