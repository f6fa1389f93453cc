"""Turn conversations into tokens: chat templates, answers, spans that are learnt."""
