echo "\"oops\", I said"
kill -9 $$
