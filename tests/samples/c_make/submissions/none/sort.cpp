// wrong language
