"""Mean fields of models that split counts over topics or factors, in sparse passes over the words that occur."""
