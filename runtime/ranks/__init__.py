"""One video over several processes: each owns some of the histories and draws the candidates that extend them."""
