"""How well somebody who gets pictures tells protected ones from clean ones of the same source."""
