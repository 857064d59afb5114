"""The templates of the cards, as package data of `midb.hub_cards`."""
