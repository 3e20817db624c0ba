read -r first rest
echo "Hello, $first!"
