"Ctrl-C reaches the tests, and the processes that they start, also where a shell started them in the background and told them to ignore it."
import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN: signal.signal(signal.SIGINT, signal.default_int_handler)
