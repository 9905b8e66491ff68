"""How synthetic images are stored: as many numbers as their pixels, decoded into the images."""
