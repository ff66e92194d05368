import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.File;
import java.io.IOException;
import javax.net.ssl.SSLServerSocket;
import javax.net.ssl.SSLSocket;

/** {@code Server PROPERTIES} runs a command for each client, waits for it, and sends its exit status. */
final class Server {
    private static final int MOST_WAITING = 1024;
    private static final File NOTHING = new File("/dev/null");

    public static void main(String[] words) throws Exception {
        Tls tls = new Tls(words[0]);
        SSLServerSocket listener =
            (SSLServerSocket) tls.context.getServerSocketFactory().createServerSocket(tls.port, MOST_WAITING);
        listener.setNeedClientAuth(true);
        System.err.println("listening on port " + listener.getLocalPort());
        while (true) {
            SSLSocket socket = (SSLSocket) listener.accept();
            new Thread(() -> serve(socket)).start();
        }
    }

    private static void serve(SSLSocket socket) {
        try (socket) {
            socket.setTcpNoDelay(true);
            String request = new DataInputStream(socket.getInputStream()).readUTF();
            ProcessBuilder builder = new ProcessBuilder(request.split("\0"));
            builder.redirectInput(NOTHING);
            builder.redirectOutput(ProcessBuilder.Redirect.DISCARD);
            builder.redirectError(ProcessBuilder.Redirect.DISCARD);
            int status = builder.start().waitFor();
            DataOutputStream out = new DataOutputStream(socket.getOutputStream());
            out.writeInt(status);
            out.flush();
        } catch (IOException | InterruptedException error) {
            System.err.println(error);
        }
    }
}
