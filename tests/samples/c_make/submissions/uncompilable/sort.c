int main(void) { return sort(); }
#error "I ran out of time"
