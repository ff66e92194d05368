import java.io.DataInputStream;
import java.io.DataOutputStream;
import javax.net.ssl.SSLSocket;

/** {@code Client PROPERTIES COMMAND...} asks the server to run a command, and ends with its exit status. */
final class Client {
    public static void main(String[] words) throws Exception {
        Tls tls = new Tls(words[0]);
        try (SSLSocket socket = (SSLSocket) tls.context.getSocketFactory().createSocket("127.0.0.1", tls.port)) {
            socket.setTcpNoDelay(true);
            DataOutputStream out = new DataOutputStream(socket.getOutputStream());
            StringBuilder request = new StringBuilder(words[1]);
            for (int i = 2; i < words.length; i++) {
                request.append('\0').append(words[i]);
            }
            out.writeUTF(request.toString());
            out.flush();
            int status = new DataInputStream(socket.getInputStream()).readInt();
            Runtime.getRuntime().exit(status);
        }
    }
}
