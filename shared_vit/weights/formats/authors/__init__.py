"""Files of the programs of models' authors, whose names are not timm's."""
