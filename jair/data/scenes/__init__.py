"""Pictures drawn by rule, with captions and compositional questions: a data set that needs no download."""
